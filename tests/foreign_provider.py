"""An OpenID provider that others wrote, behind TLS, whose key set holds what is given as well. A program of its own.

``python foreign_provider.py FOLDER``: FOLDER holds ``server.pem``, ``server.key`` and ``people.json``; the port is printed.
"""

import json
import ssl
import sys
from pathlib import Path

import oidc_provider_mock
import werkzeug.serving


def main():
    folder = Path(sys.argv[1])
    given = json.loads((folder / "people.json").read_text())
    users = [oidc_provider_mock.User(sub=sub, claims=claims) for sub, claims in given["people"].items()]
    provider = oidc_provider_mock.app(user_claims=users)

    @provider.after_request
    def add_keys(answer):
        if answer.is_json and isinstance(answer.json, dict) and "keys" in answer.json:
            answer.set_data(json.dumps({"keys": [*given["keys"], *answer.json["keys"]]}))
        return answer

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    server = werkzeug.serving.make_server("localhost", 0, provider, threaded=True, ssl_context=context)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
