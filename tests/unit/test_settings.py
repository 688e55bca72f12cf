"""Settings: a value that makes no sense is refused with its variable's name, and no password is shown."""

import pytest

from maveriq import agreed_settings as agreed
from maveriq.agreed_settings import Method
from maveriq.settings import BadSetting, misspelt, num_bytes, number, one_of, read, whole


@pytest.mark.parametrize("text", ["0", "11", "-1", "1.5", "ten", "²", " 5"])
def test_a_whole_number_out_of_bounds_is_refused(text: str) -> None:
    with pytest.raises(BadSetting, match=rf"^X='{text}': give a whole number from 1 to 10$"):
        read({"X": text}, "X", whole(1, 10))


@pytest.mark.parametrize("text", ["-0.1", "10.1", "nan", "inf", "soon"])
def test_a_number_out_of_bounds_is_refused(text: str) -> None:
    with pytest.raises(BadSetting, match=rf"^X='{text}': give a number of seconds from 0 to 10$"):
        read({"X": text}, "X", number(0, 10, "seconds"))


def test_a_word_that_is_none_of_the_choices_is_refused_with_all_of_them() -> None:
    with pytest.raises(BadSetting, match=r"^X='c': give one of a, b$"):
        read({"X": "c"}, "X", one_of(("a", "b")))


def test_what_is_not_set_or_empty_has_its_default_or_is_missed_by_name() -> None:
    assert read({}, "X", whole(1, 10), 3) == read({"X": ""}, "X", whole(1, 10), 3) == 3
    with pytest.raises(BadSetting, match=r"^X is not set$"):
        read({}, "X", str)


@pytest.mark.parametrize("url", ["redis//:secret@host", "user:secret@host:6379", "http://user:secret@host"])
def test_a_refused_address_does_not_show_its_password(url: str) -> None:
    with pytest.raises(BadSetting, match=r"MAVERIQ_REDIS_URL=.*@host.*give a Redis URL") as refused:
        agreed.redis_url({"MAVERIQ_REDIS_URL": url})
    assert "secret" not in str(refused.value)


def test_an_address_that_is_none_names_the_variable() -> None:
    with pytest.raises(BadSetting, match="MAVERIQ_AMQP_URL='localhost': expected amqp://"):
        agreed.amqp_url({"MAVERIQ_AMQP_URL": "localhost"})
    with pytest.raises(BadSetting, match="MAVERIQ_AMQP_URL='amqp://host:port/'"):
        agreed.amqp_url({"MAVERIQ_AMQP_URL": "amqp://host:port/"})


def test_what_several_services_read_has_one_default_and_the_same_bounds() -> None:
    assert (agreed.engine({}), agreed.threads_per_stage({}), agreed.max_pp({})) == ("torch", 1, 8)
    assert agreed.method({"MAVERIQ_ESTIMATOR": "aiconfigurator"}) is Method.AICONFIGURATOR
    for name, text, refuse in (
        ("MAVERIQ_ENGINE", "vllm", agreed.engine),
        ("MAVERIQ_THREADS_PER_STAGE", "0", agreed.threads_per_stage),
        ("MAVERIQ_MAX_PP", "129", agreed.max_pp),
        ("MAVERIQ_ESTIMATOR", "oracle", agreed.method),
    ):
        with pytest.raises(BadSetting, match=name):
            refuse({name: text})


def test_a_misspelt_variable_is_found_and_other_programs_are_left_alone() -> None:
    env = {
        "MAVERIQ_QUOTA": "",
        "MAVERIQ_HEADROM": "",
        "MAVERIQ_INGRESS_SERVICE_HOST": "",
        "MAVERIQ_NODE": "",
        "HOME": "",
    }
    assert misspelt(env) == {"MAVERIQ_QUOTA": "MAVERIQ_QUOTAS", "MAVERIQ_HEADROM": "MAVERIQ_HEADROOM"}


def test_a_size_is_read_in_either_kind_of_unit() -> None:
    assert (num_bytes("1.5GiB"), num_bytes("2 kb"), num_bytes("512MiB")) == (1_610_612_736, 2_000, 536_870_912)
    with pytest.raises(ValueError, match="5 is not a size such as 512MiB"):
        num_bytes("5")
