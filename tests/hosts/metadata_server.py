"""A host's instance metadata service as EC2 has it in version 2: metadata_server.py NOTICE_FILE.

It knows no more than the two questions about the end of a spot machine. The file, once it is there, is the notice.
"""

from __future__ import annotations

import secrets
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ADDRESS = ("169.254.169.254", 80)
TOKENS: set[str] = set()


class MetadataHandler(BaseHTTPRequestHandler):
    """Answers as
    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html says."""

    notice = Path("/nowhere")

    def do_PUT(self) -> None:
        if self.path != "/latest/api/token":
            self._answer(404)
        elif not self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "").isdigit():
            self._answer(400)
        else:
            token = secrets.token_urlsafe(32)
            TOKENS.add(token)
            self._answer(200, token)

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") not in TOKENS:
            self._answer(401)
        elif self.path == "/latest/meta-data/spot/instance-action" and self.notice.exists():
            self._answer(200, self.notice.read_text(encoding="utf-8"))
        else:
            self._answer(404)

    def _answer(self, status: int, text: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


if __name__ == "__main__":
    MetadataHandler.notice = Path(sys.argv[1])
    ThreadingHTTPServer(ADDRESS, MetadataHandler).serve_forever()
