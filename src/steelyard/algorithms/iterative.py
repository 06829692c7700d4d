"""Iterative methods: a loss that others have too, on rows that are made anew in every round.

The data loop is the algorithm (:class:`steelyard.algorithms.core.Rounds`): who completes the prompts, what is kept
(:mod:`steelyard.algorithms.rounds`), whose log-probabilities are the reference, and from which weights a round
trains.  How many prompts and samples a round takes, and at which temperature, is the recipe's ``data.generate``.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor

from steelyard.algorithms import links, rounds
from steelyard.algorithms.core import Rounds, algorithm
from steelyard.algorithms.links import NonNegative, Positive, margin
from steelyard.algorithms.pointwise import sppo_terms
from steelyard.types import Pairs, Rollouts, Tokens

Count = Annotated[int, Gt(0)]

# --------------------------------------------------------------------------------------------------
# Pairs


@algorithm(
    paper="2401.01335",
    reference="previous",
    beta_scale="sum",
    rounds=Rounds(rounds.gold_and_own, ("gold", "policy"), accumulate=True, judged=False),
)
def spin(pairs: Pairs, *, beta: Positive = 0.1, rounds: Count = 4) -> Tensor:
    r"""Self-play fine-tuning, SPIN (Chen et al., 2024).

    $-\log\sigma(\beta(l_w-l_l))$ where the chosen completion is gold, the rejected one a sample of the previous
    iterate, and the reference is that iterate.  From the second round on, the rows of the round before stay.

    Watch: it needs gold completions and no verifier; once samples are as good as gold, there is nothing to learn.
    The paper takes one sample per prompt.

    Differs: oxRL's SPIN is offline DPO; nothing is generated.

    Args:
        beta: strength of the pull towards the previous iterate.
        rounds: iterations.
    """
    return links.logistic(beta * margin(pairs))


@algorithm(
    paper="2402.04792",
    reference=True,
    beta_scale="sum",
    rounds=Rounds(rounds.winner_and_loser, rounds=None),
)
def online_dpo(pairs: Pairs, *, beta: Positive = 0.1, missing_eos_penalty: NonNegative = 1.0) -> Tensor:
    r"""Online DPO, direct alignment from online AI feedback, OAIF (Guo et al., 2024).

    $-\log\sigma(\beta(l_w-l_l))$: at every step the current policy writes two completions of each prompt, a judge names
    the winner, and one DPO step follows.

    Watch: prompts whose two samples score alike give no pair.  The paper samples at temperature 0.9; of more than
    two samples the best meets the worst.

    Differs: oxRL's class is offline DPO.  TRL leaves the missing-EOS penalty off unless asked.

    Args:
        beta: strength of the pull towards the start.
        missing_eos_penalty: taken off the score of a completion that does not end.
    """
    return links.logistic(beta * margin(pairs))


@algorithm(
    paper="2312.16682",
    reference="previous",
    beta_scale="sum",
    rounds=Rounds(rounds.best_and_worst),
)
def iterative_dpo(pairs: Pairs, *, beta: Positive = 0.1, rounds: Count = 3) -> Tensor:
    r"""Iterative DPO (Xu et al., 2023; Dong et al., 2024; self-rewarding: Yuan et al., 2024).

    $-\log\sigma(\beta(l_w-l_l))$ on the best and the worst of n samples per prompt, drawn by the policy at the start of
    each round, which is also the round's reference.

    Watch: prompts whose samples all score alike give no pair.  Eight samples are
    usual.

    Differs: Dong et al. (2405.07863) keep the first reference in all rounds.

    Args:
        beta: strength of the pull towards the previous iterate.
        rounds: how often samples are drawn anew.
    """
    return links.logistic(beta * margin(pairs))


@algorithm(
    paper="2405.21046",
    reference=True,
    beta_scale="sum",
    columns=("from_reference",),
    rounds=Rounds(rounds.explored, ("policy", "reference"), rounds=None),
)
def xpo(pairs: Pairs, *, beta: Positive = 0.1, alpha: NonNegative = 1e-5) -> dict[str, Tensor]:
    r"""Exploratory preference optimization, XPO (Xie et al., 2024).

    $-\log\sigma(\beta(l_w-l_l))+\alpha S(y')$ on one sample of the policy and one, $y'$, of the reference, judged; the
    second term is the optimism: it lowers the likelihood of what the reference would say anyway.

    Watch: one sample of each per prompt (`data.generate.num_generations: 1`) is the paper's; ties give no pair.

    Differs: OAT uses alpha 5e-6.

    Args:
        beta: strength of the pull towards the start.
        alpha: weight of the optimism; 0 is online DPO between policy and reference.
    """
    share = pairs.column("from_reference")
    explored = share * pairs.chosen.logp + (1 - share) * pairs.rejected.logp
    return {"preference": links.logistic(beta * margin(pairs)), "optimism": alpha * explored}


@algorithm(
    paper="2404.13846",
    reference=True,
    beta_scale="sum",
    rounds=Rounds(rounds.filtered, ("gold", "policy"), base="pairs", count=1),
)
def filtered_dpo(pairs: Pairs, *, beta: Positive = 0.1, threshold: float = 0.0, rounds: Count = 3) -> Tensor:
    r"""Filtered DPO (Morimura et al., 2024).

    $-\log\sigma(\beta(l_w-l_l))$ on the pairs that the policy has not outgrown: before each epoch it completes every
    prompt once, and a pair whose chosen side does not beat that sample is left out of the epoch.

    Watch: as the policy gets better, fewer pairs are left.

    Differs: oxRL's FDPO is the f-divergence method (`fdpo`).

    Args:
        beta: strength of the pull towards the start.
        threshold: a pair is dropped when the sample's score exceeds the chosen one's by this or more.
        rounds: epochs, each with its own filter.
    """
    return links.logistic(beta * margin(pairs))


@algorithm(
    paper="2405.00675",
    reference="previous",
    beta_scale="sum",
    columns=("p_chosen", "p_rejected"),
    rounds=Rounds(rounds.best_and_worst),
)
def sppo(pairs: Pairs, *, beta: Positive = 1e-3, hard: bool = False, rounds: Count = 3) -> Tensor:
    r"""Self-play preference optimization, SPPO (Wu et al., 2024).

    $(l_w-\frac1\beta(P_w-\frac12))^2+(l_l-\frac1\beta(P_l-\frac12))^2$, where $P_y$ is the probability that y beats a
    sample of the policy, estimated among K samples of each prompt, of which the best and the worst are trained on;
    the reference is the previous iterate.

    Watch: $1/\beta$ is the paper's $\eta$ = 1000, so targets are hundreds of nats; the learning rate must be small.

    Differs: the authors' code halves the sum; TRL, Liger and oxRL have only the hard form, oxRL offline and with
    beta 0.1.

    Args:
        beta: the inverse of the paper's eta.
        hard: P is 1 and 0 whatever the samples say.
        rounds: iterations; the paper takes 5 samples per prompt in each.
    """
    return sppo_terms(pairs, beta=beta, hard=hard)


# --------------------------------------------------------------------------------------------------
# Policy gradient against a mixture


@algorithm(
    paper="2312.00886",
    reference=True,
    reduce="seq-mean-token-sum",
    beta_scale="sum",
    rounds=Rounds(rounds.against_mixture, ("policy", "mixture"), rounds=None, mixture="b"),
)
def nash_md(rollouts: Rollouts, *, beta: Positive = 0.1, b: Annotated[float, Ge(0.0)] = 0.5) -> dict[str, Tensor]:
    r"""Nash mirror descent, Nash-MD-PG (Munos et al., 2023).

    $-(P-\frac12)\,S(y)+\beta\sum_t\mathrm{sg}(\log\pi_t-\log\pi_{ref,t})\log\pi_t$ per completion y of the policy; P is
    the judge's preference for y over a sample y' of the geometric mixture $\pi^{1-b}\pi_{ref}^{b}$.

    Watch: y' is not trained on.

    Differs: mixture 0.5 and beta 0.1 are TRL's defaults; the paper tunes both.

    Args:
        beta: strength of the pull towards the start.
        b: the reference's share in the exponents of the mixture; 0 is self-play.
    """
    pull = (rollouts.logp - rollouts.ref).detach()
    preference = (rollouts.rewards - 0.5).detach()[:, None]
    return {"preference": -preference * rollouts.logp, "kl": beta * pull * rollouts.logp}


# --------------------------------------------------------------------------------------------------
# Supervised learning on what was selected


@algorithm(paper="2304.06767", length_normalized=True, rounds=Rounds(rounds.top))
def raft(tokens: Tokens, *, rounds: Count = 3, keep: Count = 1) -> Tensor:
    r"""Reward-ranked fine-tuning, RAFT (Dong et al., 2023).

    $-\log\pi_\theta(y_t|x,y_{<t})$ on the best of n samples per prompt, drawn anew in every round.  Returns [b, t].

    Watch: the best is trained on even if it is bad; the paper takes 8 to 32 samples.

    Args:
        rounds: how often samples are drawn anew; the paper goes on until the reward stops rising.
        keep: how many of the best samples of a prompt are kept.
    """
    return tokens.completions.token_nll


@algorithm(paper="2112.09332", length_normalized=True, rounds=Rounds(rounds.top, rounds=1))
def best_of_n(tokens: Tokens) -> Tensor:
    r"""Best-of-n distillation (Nakano et al., 2021; one round of RAFT).

    $-\log\pi_\theta(y_t|x,y_{<t})$ on the best of n samples of the start per prompt, drawn once.  Returns [b, t].

    Watch: the best is trained on even if it is bad.
    """
    return tokens.completions.token_nll


@algorithm(
    paper="2308.08998",
    length_normalized=True,
    rounds=Rounds(rounds.above_threshold, ("gold", "policy"), reuse="improve"),
)
def rest(
    tokens: Tokens, *, rounds: Count = 3, improve: Count = 3, tau: NonNegative = 0.7, tau_last: NonNegative = 0.9
) -> Tensor:
    r"""Reinforced self-training, ReST (Gulcehre et al., 2023, eq. 2, alg. 1).

    $1[R>\tau_i]\cdot-\log\pi_\theta(y_t|x,y_{<t})$ on gold completions and samples.  A Grow step draws and scores
    samples; the Improve steps that follow, each from the policy of the one before, raise the threshold.
    Returns [b, t].

    Watch: the paper samples 25 to 100 per prompt at temperature 0.8, and its first threshold lies above the mean
    reward; scores must lie in [0, 1].

    Differs: the paper improves until the validation reward stops rising, with ever lower learning rates; here the
    number of steps is given, and the schedule of the run lowers the rate.

    Args:
        rounds: Improve steps in all.
        improve: Improve steps per Grow step.
        tau: threshold of the first Improve step after a Grow step.
        tau_last: that of the last; the thresholds between are evenly spaced.
    """
    return tokens.completions.token_nll


@algorithm(paper="2312.06585", length_normalized=True, rounds=Rounds(rounds.correct_ones, restart=True))
def rest_em(tokens: Tokens, *, rounds: Count = 3, keep: Count = 10) -> Tensor:
    r"""ReST-EM, expectation maximisation with a binary reward (Singh et al., 2023, alg. 1, eq. 3).

    $-\log\pi_\theta(y_t|x,y_{<t})$ on right samples of the current policy, at most `keep` per problem and no gold
    completions; every round trains the start's weights anew.  Returns [b, t].

    Watch: the last round alone decides the result.  The paper takes 32 samples (MATH) at temperature 0.7, top-k 40.

    Differs: the paper prompts with examples and stops when the validation reward stops rising.

    Args:
        rounds: iterations.
        keep: right samples per problem at most.
    """
    return tokens.completions.token_nll


@algorithm(
    paper="2203.14465", length_normalized=True, rounds=Rounds(rounds.correct_ones, ("greedy", "hinted"), restart=True)
)
def star(tokens: Tokens, *, rounds: Count = 3) -> Tensor:
    r"""Self-taught reasoner, STaR (Zelikman et al., 2022).

    $-\log\pi_\theta(y_t|x,y_{<t})$ on right rationales: greedy ones, and where those fail, greedy ones after the prompt
    with its answer as a hint, which is removed for training; every round trains the start's weights anew.
    Returns [b, t].

    Watch: a model that makes nothing of the hint gains nothing by it.

    Differs: the paper prompts with examples.

    Args:
        rounds: outer loops.
    """
    return tokens.completions.token_nll


@algorithm(
    paper="1606.07947",
    length_normalized=True,
    teacher=True,
    rounds=Rounds(rounds.keep_all, ("teacher",), rounds=1, judged=False),
)
def seqkd(tokens: Tokens) -> Tensor:
    r"""Sequence-level knowledge distillation (Kim & Rush, 2016).

    $-\log\pi_\theta(y_t|x,y_{<t})$ on completions that the teacher wrote.  Returns [b, t].

    Watch: the teacher's mistakes are learnt as well; nothing is verified.

    Differs: the paper searches with a beam; here the teacher samples.
    """
    return tokens.completions.token_nll
