"""dq, dk, dv, dbias and dsink of every target, over the tables of cases."""

import cases
from judge import try_backward
from targets import on_targets


@on_targets(cases.single)
def test_single(target, case):
    try_backward(target, case)


@on_targets(cases.pairs)
def test_pairs(target, case):
    try_backward(target, case)


@on_targets(cases.mixed)
def test_mixed(target, case):
    try_backward(target, case)


@on_targets(cases.edges)
def test_edges(target, case):
    try_backward(target, case)


@on_targets(cases.dims)
def test_dims(target, case):
    try_backward(target, case)


@on_targets(cases.dtypes)
def test_dtypes(target, case):
    try_backward(target, case)


@on_targets(cases.varlen)
def test_varlen(target, case):
    try_backward(target, case)


@on_targets(cases.strides)
def test_strides(target, case):
    try_backward(target, case)
