"""Read files and hub data sets as rows, recognise their format, and turn each row into messages."""
