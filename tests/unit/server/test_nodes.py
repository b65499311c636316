from collections.abc import Callable, Iterable

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from common import messages
from common.flower import become_server, new_context, new_run
from common.link.identity import node_id
from server.nodes import NamedGrid
from simulations.grids import InProcessGrid

ECHO = "query.echo"
Answer = Callable[[Message], Message]


@pytest.fixture(autouse=True)
def _server() -> None:
    become_server()


def named(name: str | None) -> ClientApp:
    """A node that says its name and echoes."""
    app = ClientApp()

    @app.query("site")
    def site(message: Message, context: Context) -> Message:
        content = RecordDict() if name is None else messages.site_name(name)
        return Message(content, reply_to=message)

    @app.query("echo")
    def echo(message: Message, context: Context) -> Message:
        return Message(RecordDict({"by": ConfigRecord({"name": str(name)})}), reply_to=message)

    return app


def grid(nodes: dict[int, str | None], sites: Iterable[str]) -> NamedGrid:
    apps = {node: (named(name), new_context(node)) for node, name in nodes.items()}
    return NamedGrid(InProcessGrid(apps), sites)


def to(site: str) -> Message:
    return Message(RecordDict(), dst_node_id=node_id(site), message_type=ECHO, group_id="1")


def by(reply: Message) -> tuple[int, str]:
    return reply.metadata.src_node_id, str(reply.content.config_records["by"]["name"])


def test_messages_reach_the_site_of_that_name_and_replies_bear_its_number() -> None:
    made = grid({77: "B", 55: "A"}, ["A", "B"])
    assert set(made.get_node_ids()) == {node_id("A"), node_id("B")}
    replies = [by(reply) for reply in made.send_and_receive([to("B"), to("A")])]
    assert replies == [(node_id("B"), "B"), (node_id("A"), "A")]
    pulled = made.pull_messages(made.push_messages([to("A")]))
    assert [by(reply) for reply in pulled] == [(node_id("A"), "A")]


def test_a_message_that_is_sent_again_goes_to_the_same_site() -> None:
    made = grid({77: "B", 55: "A"}, ["A", "B"])
    list(made.get_node_ids())
    order = to("A")
    assert [by(r)[1] for _ in range(2) for r in made.send_and_receive([order])] == ["A", "A"]


@pytest.mark.parametrize("stranger", ["C", "", None, "A"])
def test_a_node_of_no_site_or_of_anothers_name_is_left_out(
    stranger: str | None, logs: Callable[[], object]
) -> None:
    made = grid({55: "A", 66: stranger, 77: "B"}, ["A", "B"])
    assert set(made.get_node_ids()) == {node_id("A"), node_id("B")}
    assert [by(reply)[1] for reply in made.send_and_receive([to("A")])] == ["A"]
    assert "node left out" in logs.text  # type: ignore[attr-defined]


def test_each_node_is_asked_once_and_one_that_said_nothing_again() -> None:
    inner = InProcessGrid({55: (named("A"), new_context(55)), 77: (named("B"), new_context(77))})
    asked: list[int] = []
    silent = {77}
    sound = inner._deliver

    def deliver(message: Message) -> Message:
        asked.append(message.metadata.dst_node_id)
        return sound(message)

    class Lossy(InProcessGrid):
        def send_and_receive(  # type: ignore[override]
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> list[Message]:
            return [deliver(m) for m in messages if m.metadata.dst_node_id not in silent]

    made = NamedGrid(Lossy(inner._sites), ["A", "B"])
    assert list(made.get_node_ids()) == [node_id("A")]
    silent.clear()
    for _ in range(2):
        assert set(made.get_node_ids()) == {node_id("A"), node_id("B")}
    assert asked == [55, 77]


def test_a_node_that_failed_to_answer_is_no_site() -> None:
    class Failing(InProcessGrid):
        def send_and_receive(  # type: ignore[override]
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> list[Message]:
            return [Message(Error(0, "down"), reply_to=m) for m in messages]

    made = NamedGrid(Failing({55: (named("A"), new_context(55))}), ["A"])
    assert list(made.get_node_ids()) == []


def test_the_run_is_the_grids() -> None:
    made = grid({55: "A"}, ["A"])
    run = new_run()
    made.set_run(run)
    assert made.run is run
    assert made.create_message(RecordDict(), ECHO, 5, "g").metadata.dst_node_id == 5
