"""The kernels in numpy: the definition of each native one, and what runs where there is no native one.

Same names, arguments, results and errors as m3edge._native.
"""

from __future__ import annotations

from m3edge._checks_numpy import lexical_problem as lexical_problem
from m3edge._checks_numpy import row_off_length as row_off_length
from m3edge._crc32_python import crc32 as crc32
from m3edge._crc32_python import crc32_of_row as crc32_of_row
from m3edge._dense_numpy import dense_candidates as dense_candidates
from m3edge._dense_numpy import dense_codes as dense_codes
from m3edge._dense_numpy import dense_scores as dense_scores
from m3edge._fusion_numpy import weighted_best as weighted_best
from m3edge._graph_numpy import GraphLinks as GraphLinks
from m3edge._hybrid_numpy import hybrid_scores as hybrid_scores
from m3edge._maxsim_numpy import maxsim_records as maxsim_records
from m3edge._postings_numpy import PostingBlock as PostingBlock
from m3edge._postings_numpy import count_postings as count_postings
from m3edge._postings_numpy import query_factors as query_factors
from m3edge._postings_numpy import score_postings as score_postings
from m3edge._postings_numpy import top_postings as top_postings
from m3edge._shared_numpy import quantize_rows as quantize_rows
