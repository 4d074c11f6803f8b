"""Certificates, and doors with TLS before servers that have none of their own."""

from __future__ import annotations

import base64
import contextlib
import datetime
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["Certificates", "registry_door", "tcp_door"]


@dataclass(frozen=True, slots=True)
class Certificates:
    """An authority, a server on the loopback and a client that it vouches for; PEM files."""

    authority: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path

    @classmethod
    def make(cls, folder: Path) -> Certificates:
        """New ones, valid for a day."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of the tests")])
        root = _signed(name, name, key.public_key(), key, authority=True)
        paths = [_written(folder / "authority.pem", root.public_bytes(serialization.Encoding.PEM))]
        for who in ("server", "client"):
            own = ec.generate_private_key(ec.SECP256R1())
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, who)])
            signed = _signed(subject, name, own.public_key(), key, authority=False)
            pem = signed.public_bytes(serialization.Encoding.PEM)
            paths.append(_written(folder / f"{who}.pem", pem))
            secret = own.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            paths.append(_written(folder / f"{who}.key", secret))
        return cls(*paths)

    def context(self, client_too: bool) -> ssl.SSLContext:
        """Of a server; with `client_too` only clients of the authority come in."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.authority))
        context.load_cert_chain(self.server, self.server_key)
        context.verify_mode = ssl.CERT_REQUIRED if client_too else ssl.CERT_NONE
        return context


def _signed(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    key: ec.EllipticCurvePrivateKey,
    authority: bool,
) -> x509.Certificate:
    """A certificate."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
        .sign(key, hashes.SHA256())
    )


def _written(path: Path, data: bytes) -> Path:
    """The file, for nobody else to read."""
    path.touch(mode=0o600)
    path.write_bytes(data)
    return path


@contextlib.contextmanager
def tcp_door(behind: int, context: ssl.SSLContext) -> Iterator[int]:
    """A port of the loopback that speaks TLS and passes all on to another port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    plain, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(
                    target=_pass_on, args=(plain, behind, context), daemon=True
                ).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _pass_on(plain: socket.socket, behind: int, context: ssl.SSLContext) -> None:
    """Both ways, until one side ends."""
    with (
        contextlib.suppress(OSError),
        plain,
        context.wrap_socket(plain, server_side=True) as outer,
        socket.create_connection(("127.0.0.1", behind)) as inner,
    ):
        back = threading.Thread(target=_copy, args=(inner, outer), daemon=True)
        back.start()
        _copy(outer, inner)
        back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    """All that comes."""
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def registry_door(behind: int, context: ssl.SSLContext, user: str, password: str) -> Iterator[int]:
    """A port that speaks HTTPS and passes on requests of one user (basic authentication)."""
    wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    class Door(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != wanted:
                self._answer(
                    401, {"Content-Type": "application/json"}, b'{"message":"who are you"}'
                )
                return
            asked = http.client.HTTPConnection("127.0.0.1", behind, timeout=15)
            kept = {k: v for k, v in self.headers.items() if k in ("Content-Type", "Accept")}
            asked.request(self.command, self.path, body or None, kept)
            answer = asked.getresponse()
            self._answer(
                answer.status, {"Content-Type": answer.getheader("Content-Type", "")}, answer.read()
            )
            asked.close()

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = _pass_on

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()
