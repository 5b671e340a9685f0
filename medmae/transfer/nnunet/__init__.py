"""Weights in nnU-Net: the only room that knows nnunetv2.

Weights are adapted to the user's plan, never the plan to the weights.
"""
