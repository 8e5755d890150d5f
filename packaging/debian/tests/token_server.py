"""token_server.py ADDRESS JWKS - a token endpoint on loopback that verifies assertions with the keys in the file JWKS.

Its URL is written into the file ADDRESS. Debian's PyJWT does the verifying, so that what the package signs is read by
code that is not the package's.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import jwt

ADDRESS, JWKS = map(Path, sys.argv[1:])


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer(200, {"issuer": url, "token_endpoint": url + "/token"})

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        key = jwt.PyJWKSet.from_dict(json.loads(JWKS.read_text())).keys[0].key
        try:
            claims = jwt.decode(form["assertion"][0], key, algorithms=["ES256"], audience=url, issuer="board-1")
        except jwt.InvalidTokenError as error:
            return self.answer(400, {"error": "invalid_grant", "error_description": str(error)})
        sys.stdout.write(f"a token for {claims['sub']}, board {claims['board']}\n")
        return self.answer(200, {"access_token": "token-for-board-1", "token_type": "Bearer", "expires_in": 600})

    def answer(self, status: int, members: dict[str, object]) -> None:
        body = json.dumps(members).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: what matters is printed above."""


server = HTTPServer(("127.0.0.1", 0), Handler)
url = f"http://127.0.0.1:{server.server_port}"
sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
ADDRESS.write_text(url)
server.serve_forever()
