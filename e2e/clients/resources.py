"""Walks through the other resources with the official client; an assertion is the test.

Reads ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY.
"""

import os

import anthropic
from anthropic import Anthropic


def refused(status, call, **arguments):
    try:
        call(**arguments)
    except anthropic.APIStatusError as error:
        assert error.status_code == status, error
        assert error.body["error"]["type"], error.body
        assert error.request_id, error
        return error
    raise AssertionError(f"expected {status}")


def agents(beta):
    agent = beta.agents.create(
        name="first",
        model="script/six-tools",
        metadata={"team": "a"},
        tools=[
            {
                "type": "agent_toolset_20260401",
                "default_config": {"permission_policy": {"type": "always_ask"}},
                "configs": [{"name": "bash", "permission_policy": {"type": "always_allow"}}],
            },
            {
                "type": "custom",
                "name": "lookup",
                "description": "Looks something up.",
                "input_schema": {"type": "object", "properties": {}},
            },
        ],
    )
    assert agent.version == 1 and agent.model.id == "script/six-tools"
    configs = {config.name: config.permission_policy.type for config in agent.tools[0].configs}
    assert configs["bash"] == "always_allow" and configs["read"] == "always_ask", configs
    agent = beta.agents.update(agent.id, version=1, name="second", metadata={"team": "b"})
    assert agent.version == 2 and agent.metadata == {"team": "b"} and agent.name == "second"
    refused(409, beta.agents.update, agent_id=agent.id, version=1, name="third")
    versions = [version.version for version in beta.agents.versions.list(agent.id)]
    assert versions == [2, 1], versions
    assert beta.agents.retrieve(agent.id, version=1).name == "first"
    for number in range(5):
        beta.agents.create(name=f"n{number}", model="claude-test")
    names = [found.name for found in beta.agents.list(limit=2)]
    assert names == ["n4", "n3", "n2", "n1", "n0", "second"], names
    refused(400, beta.agents.create, name="x", model="script/there-is-none")
    refused(404, beta.agents.retrieve, agent_id="agent_none")
    return agent


def environments(beta):
    made = beta.environments.create(name="made", config={"type": "self_hosted"})
    assert made.config.type == "self_hosted" and made.environment_key.startswith("sk-ant-oat01-")
    refused(409, beta.environments.create, name="made", config={"type": "self_hosted"})
    made = beta.environments.update(made.id, description="d", metadata={"a": "b"})
    assert made.description == "d" and made.metadata == {"a": "b"}
    assert not hasattr(beta.environments.retrieve(made.id), "environment_key")
    assert made.id in [found.id for found in beta.environments.list()]
    stats = beta.environments.work.stats(made.id)
    assert stats.depth == 0 and stats.oldest_queued_at is None
    archived = beta.environments.archive(made.id)
    assert archived.archived_at
    assert beta.environments.delete(made.id).type == "environment_deleted"
    error = refused(404, beta.environments.retrieve, environment_id=made.id)
    assert error.body["error"]["details"]["error_code"] == "environment_not_found"


def sessions(beta, agent):
    environment = beta.environments.create(name="of sessions", config={"type": "self_hosted"})
    session = beta.sessions.create(
        agent={"type": "agent", "id": agent.id, "version": 1},
        environment_id=environment.id,
        resources=[{"type": "file", "file_id": "file_1", "mount_path": "/workspace/x"}],
    )
    assert session.agent.version == 1 and session.resources[0].file_id == "file_1"
    assert beta.environments.work.stats(environment.id).depth == 1
    item = next(iter(beta.environments.work.list(environment.id, extra_headers=key_of(environment))))
    assert item.data.id == session.id and item.secret is None
    beta.environments.work.update(
        item.id, environment_id=environment.id, metadata={"seen": "yes"}
    )
    item = beta.environments.work.retrieve(item.id, environment_id=environment.id)
    assert item.metadata == {"seen": "yes"} and item.state == "queued"
    updated = beta.sessions.update(session.id, title="t", metadata={"k": "v"})
    assert updated.title == "t" and updated.metadata == {"k": "v"}
    added = beta.sessions.resources.add(session.id, type="file", file_id="file_2")
    assert [found.file_id for found in beta.sessions.resources.list(session.id)] == [
        "file_1",
        "file_2",
    ]
    beta.sessions.resources.delete(added.id, session_id=session.id)
    types = [event.type for event in beta.sessions.events.list(session.id, types=["session.updated"])]
    assert types == ["session.updated"], types
    assert [found.id for found in beta.sessions.list(agent_id=agent.id)] == [session.id]
    assert list(beta.sessions.threads.list(session.id)) == []
    assert beta.sessions.archive(session.id).archived_at
    assert list(beta.sessions.list(agent_id=agent.id)) == []
    assert beta.sessions.delete(session.id).type == "session_deleted"
    refused(404, beta.sessions.retrieve, session_id=session.id)
    beta.agents.archive(agent.id)
    refused(400, beta.sessions.create, agent=agent.id, environment_id=environment.id)


def key_of(environment):
    """The list of work takes the environment key only."""
    return {"Authorization": f"Bearer {environment.environment_key}"}


def main():
    beta = Anthropic(max_retries=0).beta
    agent = agents(beta)
    environments(beta)
    sessions(beta, agent)
    stranger = Anthropic(api_key="sk-ant-api03-nobody", max_retries=0)
    error = refused(401, stranger.beta.agents.list)
    assert error.body["error"]["type"] == "authentication_error"
    print("resources: ok", os.environ["ANTHROPIC_BASE_URL"])


if __name__ == "__main__":
    main()
