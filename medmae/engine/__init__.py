"""The training loop: one loop for every method, and everything a long run needs around it.

This room knows how to train; it never learns what a mask, an image or a sequence is. A method gives named
scalar losses, a source gives batches by ordinal, and the loop turns them into weights: schedule,
accumulation, clipping, EMA, several processes, journal, checkpoints, exact resume. Nothing is imported here,
so that ``import medmae.engine`` costs nothing; ``medmae.engine.trainer.pretrain`` is the entry.

Two promises shape every module:

- *A run is a function of its settings.* Random draws come from (seed, step, micro-step, rank) or from the
  source's ordinals, never from hidden generator state. So a run that was killed and resumed is the run that
  was never stopped.
- *Only finished things are visible.* Checkpoints, models and manifests appear under their name when they are
  complete on disk, and ``DONE`` is the last file written.
"""
