"""Many concepts, many devices, no server and no page: `python -m fleet`, from the pack's folder.

What is to be done:

manifest.py      a TOML file of models, concepts and settings, checked; lines.py finds the line
jobs.py          the jobs of a manifest, each with the hash of all that decides its result

What is done, on disk, in one folder (the ledger), which is the truth:

ledger.py        results, failures, snapshots and leases of jobs
leases.py        who works on a job, and until when he is believed to live
snapshot.py      a training's state as a file

Who does it:

run.py           hands jobs to workers until none is left; schedule.py: which job next
local_pool.py    workers as processes of this machine, one a device
ray_pool.py      workers as actors of a Ray cluster
worker.py        one worker: takes a job's lease, trains, keeps the result
comfyui.py       ComfyUI in a worker's process, and its own loaders; training.py trains one job

What people see: commands.py, which __main__.py starts, with each command in train.py, status.py,
sweep.py (its pictures in sweep_pictures.py, its table in sweep_table.py), imports.py and proof.py
(`report`: pictures in proof_pictures.py, the page in proof_page.py and proof_charts.py); report.py:
plan and progress. model_options.py: how a command's options name a model; sampling.py: pictures by
ComfyUI's sampler.
simulation.py measures scheduler and ledger with jobs that only sleep.
"""
