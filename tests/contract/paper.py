"""A paper of the user's own: Kaplan et al. 2020 say that a GPT of depth 2 and width 128 has 393,216 parameters."""

from bigmodel import papers

TITLE = "One size of Kaplan et al."
SOURCE = "Kaplan et al. 2020, arXiv:2001.08361, section 2.1"


def rows(points):
    return [papers.Row("sizes", "12 x 2 x 128^2", 393_216, 12 * 2 * 128**2, tolerance=0, format=",d")]
