"""Any plain data comes back from its pickle; whatever else the bytes are, they run nothing."""

import pickle
import pickletools
import sys
import threading

import hypothesis
import pytest
from hypothesis import strategies as st
from properties import lean

from flm_jax.interop import pickle_machine
from flm_jax.interop.pickle_values import PickleError

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(max_size=300)
)
KEYS = st.one_of(SCALARS, st.tuples(SCALARS, SCALARS))
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(KEYS, inner, max_size=5),
    ),
    max_leaves=12,
)
PROTOCOLS = st.integers(0, pickle.HIGHEST_PROTOCOL)

ran = []
watched = []  # audit events while something is in `watching`
watching = []  # the thread that is watched


def audit(event, arguments):
    if threading.get_ident() in watching:
        watched.append((event, arguments))


class Payload:
    """Its pickle is a call of `note`."""

    def __reduce__(self):
        return note, ("called",), {"state": 1}


def note(word):
    ran.append(word)
    return Payload()


@pytest.fixture(scope="module", autouse=True)
def audited():
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):  # loads the codecs that it may load
        pickle_machine.run(pickle.dumps(["a", b"\xff", 0.5, 1 << 99], protocol), {})
    sys.addaudithook(audit)  # stays to the end of the process, idle


def run(data):
    """The machine's answer, or None; `watched` gets imports, calls of the system, files, code."""
    watched.clear()
    watching.append(threading.get_ident())
    try:
        return pickle_machine.run(data, {})
    except PickleError:
        return None
    finally:
        watching.clear()


@lean
@hypothesis.given(PLAIN, PROTOCOLS)
def test_plain_data_comes_back(value, protocol):
    # repr tells types, the order of keys, -0.0 and NaN apart.
    assert repr(pickle_machine.run(pickle.dumps(value, protocol), {})) == repr(value)


@lean
@hypothesis.given(st.sets(SCALARS.filter(lambda x: x == x)), PROTOCOLS)
def test_sets_and_what_is_shared_come_back(values, protocol):
    shared = [1]
    given_ = {"set": values, "frozen": frozenset(values), "shared": [shared, shared]}
    back = pickle_machine.run(pickle.dumps(given_, protocol), {})
    assert back == given_ and back["shared"][0] is back["shared"][1]


@st.composite
def damaged(draw):
    """The pickle of a payload among plain data, with bytes replaced, added, left out, cut off."""
    whole = pickle.dumps([draw(PLAIN), Payload(), draw(PLAIN)], draw(PROTOCOLS))
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


OPCODES = st.sampled_from([op.code.encode("latin1") for op in pickletools.opcodes])
PIECES = st.one_of(
    OPCODES,
    st.binary(max_size=4),
    st.sampled_from(
        [b"cos\nsystem\n", b"cbuiltins\neval\n", b"cbuiltins\nlist\n", b"K\x01", b"h\0"]
    ),
)


@hypothesis.settings(lean, max_examples=300)
@hypothesis.given(
    st.one_of(damaged(), st.lists(PIECES, max_size=30).map(b"".join), st.binary(max_size=60))
)
def test_no_bytes_run_anything_or_fail_otherwise(data):
    ran.clear()
    run(data)
    assert not ran and not watched


def test_the_payload_is_real():
    pickle.loads(pickle.dumps(Payload()))
    assert ran.pop() == "called"
    watching.append(threading.get_ident())
    try:
        open(__file__).close()
    finally:
        watching.clear()
    assert watched[-1][0] == "open"
