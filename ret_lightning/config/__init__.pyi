from .sweeping import SweepSetup as SweepSetup
