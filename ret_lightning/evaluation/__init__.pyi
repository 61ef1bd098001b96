from .callback import RetrievalEvaluation as RetrievalEvaluation
from .embedding_sink import EmbeddingSink as EmbeddingSink
from .embedding_sink import MemorySink as MemorySink
from .encoding_module import EncodingModule as EncodingModule
from .evaluation_result import EvaluationResult as EvaluationResult
from .evaluation_result import SubsetResult as SubsetResult
from .evaluator import Evaluator as Evaluator
from .stored_sink import StoredSink as StoredSink
