"""A receiver of Shared Signals that polls (RFC 8936): `python examples/shared_signals/poll.py ISSUER AUDIENCE`.

It makes a stream where there is none, verifies each SET (RFC 8417) and prints what ended, one a line, as JSON. The
token stands in the environment, `SSF_TOKEN`; the audience is that token's name. Nothing of Grantbook's is needed.
"""

import json
import os
import sys

import httpx
import jwt

MAX_WAIT_SECONDS = 40.0
"""The transmitter answers a poll within 25 s, also when nothing happened."""


def main(issuer: str, audience: str, token: str) -> None:
    """Follow one stream for ever."""
    configuration = httpx.get(f"{issuer}/.well-known/ssf-configuration").raise_for_status().json()
    keys = jwt.PyJWKClient(configuration["jwks_uri"])
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(headers=headers, timeout=MAX_WAIT_SECONDS) as transmitter:
        streams = transmitter.get(configuration["configuration_endpoint"]).raise_for_status().json()
        ours = [each for each in streams if each["delivery"]["method"] == "urn:ietf:rfc:8936"]
        if not ours:
            ours = [transmitter.post(configuration["configuration_endpoint"], json={}).raise_for_status().json()]
        url = ours[0]["delivery"]["endpoint_url"]
        acknowledged: list[str] = []
        while True:
            asked = {"ack": acknowledged}
            answer = transmitter.post(url, json=asked).raise_for_status().json()
            acknowledged = []
            for jti, set_ in answer["sets"].items():
                event = jwt.decode(
                    set_,
                    keys.get_signing_key_from_jwt(set_).key,
                    algorithms=["ES256", "RS256"],
                    audience=audience,
                    issuer=issuer,
                )
                # End the sessions of event["sub_id"] here. Acknowledge what is stored, and nothing before.
                print(json.dumps({"subject": event["sub_id"], "events": event["events"]}), flush=True)
                acknowledged.append(jti)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], os.environ["SSF_TOKEN"])
