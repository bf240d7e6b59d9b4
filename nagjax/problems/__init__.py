"""Test problems whose minimizer, smoothness and strong convexity are known."""

from nagjax.problems.likelihoods import log_sum_exp as log_sum_exp
from nagjax.problems.likelihoods import logistic as logistic
from nagjax.problems.problem import Problem as Problem
from nagjax.problems.quadratics import nesterov_chain as nesterov_chain
from nagjax.problems.quadratics import quadratic as quadratic
from nagjax.problems.radial import huber as huber
from nagjax.problems.radial import log_cosh as log_cosh
