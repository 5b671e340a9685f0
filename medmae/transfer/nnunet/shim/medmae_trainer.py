"""The medmae trainer for nnU-Net's own commands: ``export nnUNet_extTrainer=<this folder>``.

nnU-Net imports every file of that folder and forgets it again, so the class has to live elsewhere, and this folder
holds this file only.
"""

from medmae.transfer.nnunet.trainer import MedMAETrainer

__all__ = ["MedMAETrainer"]
