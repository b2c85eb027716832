"""Show a run to people: console, training.log, metrics.jsonl, loss.png, and the trackers they asked for.

    with open_run(run_dir, loggers=["console", "wandb"], ..., is_main=world.is_main) as run_log:
        run_log.say("step = 2 dp x 3 micro-batches = 256 samples")
        run_log.log(step, meter.measure(stats, data_wait_s))

Watching never costs the run: whatever fails to write is switched off with one warning, and training goes on.
"""
