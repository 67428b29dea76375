import pytest

pytest.register_assert_rewrite("tests.fixtures")  # or its asserts would say less than those of a test
