import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from client.account import life_of
from client.app import HOMES, make_client_app, open_site, site_of_node
from client.approval import decide
from client.journal import Journal
from client.signing import AccountKey
from common import messages
from common.adapter import load_adapter
from common.errors import InvalidInput
from common.flower import become_server, message_from_bytes, message_to_bytes, new_context
from common.job import Job, SignedJob, sign_job
from common.phases import read_ended

pytestmark = pytest.mark.usefixtures("unrehearsed")

if TYPE_CHECKING:
    from client.site import Site

MakeJob = Callable[..., Job]
MakeSite = Callable[..., "Site"]


@pytest.fixture
def signed(job: MakeJob, operator: Any) -> SignedJob:  # noqa: ANN401 -- an Ed25519 key
    return sign_job(job(), operator)


def send(one: "Site", content: RecordDict, message_type: str) -> RecordDict:
    become_server()
    message = Message(content, dst_node_id=5, message_type=message_type)
    app = make_client_app(lambda _: one)
    reply = app(message_from_bytes(message_to_bytes(message)), new_context(5))
    return message_from_bytes(message_to_bytes(reply)).content


def said(content: RecordDict) -> messages.Verdict:
    assert {"verdict"} <= set(content) <= {"verdict", "head"}
    verdict = messages.read_verdict(content)
    assert verdict is not None
    return verdict


def test_an_offer_is_accepted_or_refused_with_a_public_reason(
    site: MakeSite,
    signed: SignedJob,
    job: MakeJob,
    operator: Any,  # noqa: ANN401
) -> None:
    one = site(policy={"max_epsilon": 6.0})
    assert said(send(one, messages.offer(signed), messages.OFFER)).is_accepted
    large = sign_job(job(privacy={"epsilon": 7.0}), operator)
    refused = said(send(one, messages.offer(large), messages.OFFER))
    assert not refused.is_accepted
    assert refused.reason == "privacy.epsilon must be at most this site's 6, got 7"


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"job": ConfigRecord({"manifest": b"[" * 5000})}),
        RecordDict({"job": ConfigRecord({"manifest": "text"})}),
        RecordDict({"round": ConfigRecord({"round": "x"})}),
        RecordDict({"close": ConfigRecord({"receipt": "[1, 2, 3]"})}),
    ],
)
@pytest.mark.parametrize("kind", [messages.OFFER, messages.TRAIN, messages.CLOSE])
def test_any_malformed_message_is_answered_with_a_refusal(
    site: MakeSite, content: RecordDict, kind: str
) -> None:
    one = site()
    assert not said(send(one, content, kind)).is_accepted
    assert one.outbox.charges() == []


def test_an_order_that_fails_a_check_trains_nothing(site: MakeSite, signed: SignedJob) -> None:
    one = site()
    adapter = load_adapter(signed.job, Path(signed.job.model.base), "cpu")
    content = messages.order(signed, adapter.table, adapter.initial, 1, None)
    content.config_records["manifest"]["sha256"] = "ab" * 32
    assert "sha256 must be" in said(send(one, content, messages.TRAIN)).reason
    assert one.outbox.charges() == []


def test_an_edited_job_is_refused_at_every_message(site: MakeSite, signed: SignedJob) -> None:
    one = site()
    adapter = load_adapter(signed.job, Path(signed.job.model.base), "cpu")
    edited = signed.model_copy(
        update={"job": signed.job.model_copy(update={"description": "", "evaluation":
            signed.job.evaluation.model_copy(update={"records": 5})})}
    )  # fmt: skip
    for content, kind in (
        (messages.offer(edited), messages.OFFER),
        (messages.order(edited, adapter.table, adapter.initial, 1, None), messages.TRAIN),
    ):
        assert "edited after signing" in said(send(one, content, kind)).reason


def test_trouble_with_the_sites_disk_is_its_own_affair(
    site: MakeSite,
    signed: SignedJob,
    logs: Any,  # noqa: ANN401
) -> None:
    one = site()
    one.home.account_path.unlink()
    one.home.account_path.mkdir()
    assert said(send(one, messages.offer(signed), messages.OFFER)).reason == messages.IN_TROUBLE
    assert "account must be written" in logs.text
    assert str(one.home.folder) in logs.text


@pytest.mark.usefixtures("self_checks")
def test_without_a_temporary_folder_a_site_is_in_trouble_and_charges_nothing(
    site: MakeSite,
    signed: SignedJob,
    logs: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    one = site()
    assert said(send(one, messages.offer(signed), messages.OFFER)).reason == messages.IN_TROUBLE
    assert "temporary folder must be writable, got: No such file" in logs.text
    assert one.outbox.charges() == []
    (tmp_path / "gone").mkdir()
    assert said(send(one, messages.offer(signed), messages.OFFER)).is_accepted


def test_a_broken_ledger_is_a_refusal_that_is_not_asked_again(
    site: MakeSite,
    signed: SignedJob,
    logs: Any,  # noqa: ANN401
) -> None:
    one = site()
    assert said(send(one, messages.offer(signed), messages.OFFER)).is_accepted
    data = one.home.account_path.read_bytes()
    place = data.index(b'"kind":"submitted"')
    one.home.account_path.write_bytes(data[: place + 8] + b"submitteb" + data[place + 17 :])
    one.outbox.journal = Journal(one.home.account_path, AccountKey(one.home.account_path, None))
    reply = send(one, messages.offer(signed), messages.OFFER)
    assert said(reply).reason == messages.NO_LEDGER
    assert messages.not_yet(Message(reply, dst_node_id=5, message_type=messages.OFFER)) == ""
    assert "ledger entry 1 must match its hash" in logs.text


def test_a_job_that_a_person_refused_is_over_and_what_it_held_is_free(
    site: MakeSite, signed: SignedJob
) -> None:
    one = site()
    adapter = load_adapter(signed.job, Path(signed.job.model.base), "cpu")
    order = messages.order(signed, adapter.table, adapter.initial, 1, None)
    assert "charge" in send(one, order, messages.TRAIN)
    decide(one.home, "wards", "refuse", "Dr Ada")
    for content, kind in (
        (order, messages.TRAIN),
        (messages.order(signed, adapter.table, adapter.initial, 2, None), messages.TRAIN),
        (messages.offer(signed), messages.OFFER),
    ):
        assert said(send(one, content, kind)).reason == (
            "job must be approved by a person at this site, got a refusal"
        )
    assert [charge.event.steps for charge in one.outbox.charges()] == [2]
    assert [event.steps for event in life_of(one.outbox).drawn()] == [2]


def test_a_server_cannot_open_a_job_again(site: MakeSite, signed: SignedJob) -> None:
    one = site()
    assert said(send(one, messages.offer(signed), messages.OFFER)).is_accepted
    for state in ("stopped", "running", "\x1b[2J", "finished", "stopped"):
        send(one, messages.close(signed.job.sha256, state, None, None), messages.CLOSE)
    assert [row.state for row in one.outbox.jobs()] == ["stopped"]
    assert len(one.outbox.journal.rows()) == 3  # created, submitted, closed
    one.outbox.verify()


def test_a_person_who_has_not_decided_is_waited_for_in_fixed_words(
    site: MakeSite,
    signed: SignedJob,
    logs: Any,  # noqa: ANN401
) -> None:
    one = site(policy={"approval": "person"}, data={"notes": {"path": "not-there.csv"}})
    for _ in range(2):
        assert said(send(one, messages.offer(signed), messages.OFFER)).reason == messages.WAITING
    assert logs.text.count("job waits for approval") == 1
    decide(one.home, "wards", "approve", "Dr Ada")
    assert said(send(one, messages.offer(signed), messages.OFFER)).reason == "not participating"
    decide(one.home, "wards", "refuse", "Dr Ada")
    assert "got a refusal" in said(send(one, messages.offer(signed), messages.OFFER)).reason


def test_a_job_too_heavy_for_the_machine_is_refused_before_its_data_is_opened(
    site: MakeSite,
    signed: SignedJob,
    logs: Any,  # noqa: ANN401
) -> None:
    nothing = {"data": {"notes": {"path": "not-there.csv"}}}
    slow = site("A", policy={"max_minutes": 1e-7}, **nothing)
    reason = said(send(slow, messages.offer(signed), messages.OFFER)).reason
    assert reason == "time must be within this site's limit, got more"
    assert "minutes" in logs.text  # by how much is in its own log
    heavy = site("B", policy={"max_memory_gb": 1e-3}, **nothing)
    reason = said(send(heavy, messages.offer(signed), messages.OFFER)).reason
    assert reason == "memory must be within this site's limit, got more"


def test_a_close_ends_the_job_at_the_site(site: MakeSite, signed: SignedJob) -> None:
    one = site()
    send(one, messages.offer(signed), messages.OFFER)
    closing = messages.close(signed.job.sha256, "stopped", None, None)
    content = send(one, closing, messages.CLOSE)
    ending = read_ended(content)
    assert ending
    assert (ending.closed.state, ending.closed.steps, ending.closed.counts) == ("stopped", 0, 0)
    del content["ending"]
    assert said(content).is_accepted
    assert [row.state for row in one.outbox.jobs()] == ["stopped"]


def test_a_site_says_its_name_and_nothing_else(site: MakeSite) -> None:
    content = send(site("B"), RecordDict(), messages.SITE)
    assert set(content) == {"site"}
    assert dict(content.config_records["site"]) == {"name": "B"}


def test_a_node_of_flowers_own_runtime_is_the_site_of_its_configuration_or_its_place(
    site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = [site(name).home.folder for name in ("A", "B")]
    for folder in homes:
        (folder / "site.toml").write_text(
            f'site = "{folder.name}"\n[policy]\nallowed_signers = ["{"ab" * 32}"]\n'
            f'max_epsilon = 50.0\nmax_delta = 1e-4\n[data.notes]\npath = "notes.csv"\n'
        )
    (homes[0].parent / "no-site").mkdir()
    open_site.cache_clear()
    named = {"home": str(homes[1]), "site": "B"}
    assert site_of_node(new_context(9, node_config=named)).home.site == "B"
    placed = {"partition-id": "1", "num-partitions": "2"}
    with pytest.raises(InvalidInput, match="a partition-id below the 0 homes under VEILTUNE_HOMES"):
        site_of_node(new_context(9, node_config=placed, run_config={HOMES: str(homes[0].parent)}))
    monkeypatch.setenv(HOMES, str(homes[0].parent))
    assert site_of_node(new_context(9, node_config=placed)).home.site == "B"
    for place in ("2", "-1"):
        with pytest.raises(InvalidInput, match="below the 2 homes"):
            site_of_node(new_context(9, node_config={"partition-id": place}))
