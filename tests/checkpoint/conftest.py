"""Stand-ins of the services that hold buckets, and places in them."""

import contextlib
import importlib
import importlib.util

import fake_store
import pytest
from fake_store import KINDS, new_place


@pytest.fixture(scope="module")
def servers():
    """A stand-in by its scheme, running from when it is first asked for to the end."""
    with contextlib.ExitStack() as running:
        started = {}

        def get(scheme: str):
            library, module, extra = KINDS[scheme]
            if importlib.util.find_spec(library) is None:
                pytest.skip(f"needs pip install 'flm_jax[{extra}]'")
            if scheme not in started:
                server = importlib.import_module(module).Server()
                started[scheme] = running.enter_context(fake_store.serving(server, "bucket"))
            return started[scheme]

        yield get


@pytest.fixture(params=KINDS)
def server(servers, request):
    server = servers(request.param)
    server.requests.clear()
    yield server
    server.refuse = lambda method, bucket, name: 0


@pytest.fixture
def url(server):
    """An empty folder of the bucket."""
    return new_place(server)
