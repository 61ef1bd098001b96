from .ddp import SameConfigDDP as SameConfigDDP
