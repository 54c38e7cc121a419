from tests.support.host import host  # noqa: F401 - a fixture
