from .module import RetModule as RetModule
from .schedule import WarmupCosine as WarmupCosine
