from .callback import RetrievalEvaluation as RetrievalEvaluation
from .callback import SubsetResult as SubsetResult
