"""Drives one session with the official client: agent, environment, session, message, stream.

    session.py SCRIPT [--environment ID] [--message TEXT] [--confirm allow|deny]

Reads ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY. Prints one JSON object a line: the ids it made,
each event as it comes, and last the stop reason of the turn.
"""

import argparse
import json
import sys

from anthropic import Anthropic


def tell(**fields):
    print(json.dumps(fields), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("script")
    parser.add_argument("--environment")
    parser.add_argument("--message", default="Please begin.")
    parser.add_argument("--confirm", choices=["allow", "deny"])
    arguments = parser.parse_args()

    beta = Anthropic().beta
    agent = beta.agents.create(
        name="scripted",
        model=f"script/{arguments.script}",
        system="You play a script.",
        tools=[{"type": "agent_toolset_20260401"}],
    )
    environment = arguments.environment
    if environment is None:
        environment = beta.environments.create(
            name=f"made by {agent.id}", config={"type": "self_hosted"}
        ).id
    session = beta.sessions.create(
        agent=agent.id,
        environment_id=environment,
        title="from the official client",
        metadata={"purpose": "test"},
    )
    assert session.status == "idle", session
    assert session.agent.id == agent.id and session.agent.version == 1, session
    tell(agent=agent.id, environment=environment, session=session.id)

    with beta.sessions.events.stream(session.id) as stream:
        text = {"type": "text", "text": arguments.message}
        sent = beta.sessions.events.send(
            session.id, events=[{"type": "user.message", "content": [text]}]
        )
        assert len(sent.data) == 1 and sent.data[0].id, sent
        for event in stream:
            tell(event=event.to_dict(mode="json"))
            if event.type == "agent.tool_use" and event.evaluated_permission == "ask":
                if arguments.confirm:
                    confirmation = {
                        "type": "user.tool_confirmation",
                        "tool_use_id": event.id,
                        "result": arguments.confirm,
                    }
                    beta.sessions.events.send(session.id, events=[confirmation])
            if event.type == "session.status_idle" and event.stop_reason.type != "requires_action":
                tell(done=event.stop_reason.type)
                break
            if event.type == "session.status_terminated":
                tell(done="terminated")
                break

    listed = [event.id for event in beta.sessions.events.list(session.id, limit=3)]
    assert len(listed) == len(set(listed)) and len(listed) > 3, listed
    tell(status=beta.sessions.retrieve(session.id).status, listed=len(listed))


if __name__ == "__main__":
    sys.exit(main())
