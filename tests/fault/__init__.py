"""Real runs hurt from outside: killed, stopped, starved of disk, damaged on disk; then the same command again.

python -m pytest tests/fault      three faults of every class
make faults                       thirty, and the table of docs/resume.md
"""
