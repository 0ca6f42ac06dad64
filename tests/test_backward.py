"""dq, dk, dv, dbias and dsink of every target, over the tables of cases."""

import cases
from judge import judge_backward
from targets import on_targets


def run(target, case):
    arrays = cases.inputs(case)
    judge_backward(case, target.backward(case, arrays, arrays.dout, arrays.dlse))


@on_targets(cases.single)
def test_single(target, case):
    run(target, case)


@on_targets(cases.pairs)
def test_pairs(target, case):
    run(target, case)


@on_targets(cases.mixed)
def test_mixed(target, case):
    run(target, case)


@on_targets(cases.edges)
def test_edges(target, case):
    run(target, case)


@on_targets(cases.dims)
def test_dims(target, case):
    run(target, case)


@on_targets(cases.dtypes)
def test_dtypes(target, case):
    run(target, case)


@on_targets(cases.varlen)
def test_varlen(target, case):
    run(target, case)


@on_targets(cases.strides)
def test_strides(target, case):
    run(target, case)
