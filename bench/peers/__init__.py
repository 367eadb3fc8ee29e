"""The peers' ways of doing the same work, written anew; tests/bench/test_peers.py holds them to our answers."""

from .generate import PeerBeams, PrefixTable, generate_beam_search
from .repeated_prompt import repeated_prompt_log_probs

__all__ = ["PeerBeams", "PrefixTable", "generate_beam_search", "repeated_prompt_log_probs"]
