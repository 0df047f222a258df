"""Telling people that something is wrong: a webhook, and e-mail."""

from __future__ import annotations

import json
import smtplib
import ssl
import urllib.request
from email.message import EmailMessage
from http.client import HTTPException
from urllib.parse import unquote, urlsplit

from astrid_pipeline.errors import AstridError, ConfigError, ServiceError
from astrid_pipeline.settings import Settings, get_settings

#: Seconds for a server to take the message.
PATIENCE = 20.0


def alert(subject: str, text: str, settings: Settings | None = None) -> list[str]:
    """Send a message wherever the settings say, and return how it went out (`webhook`, `e-mail`); nowhere is none.

    Each way is tried, also after one has failed.

    Raises
    ------
    ServiceError
        If a server did not take it.
    ConfigError
        If there are addresses for e-mail and no mail server.
    """
    settings = settings or get_settings()
    sent: list[str] = []
    failed: list[AstridError] = []
    if settings.alert_webhook is not None:
        try:
            _post(settings.alert_webhook.get_secret_value(), subject, text)
            sent.append("webhook")
        except ServiceError as error:
            failed.append(error)
    if settings.alert_email:
        try:
            _mail(settings, subject, text)
            sent.append("e-mail")
        except (ServiceError, ConfigError) as error:
            failed.append(error)
    if failed:
        raise failed[0]
    return sent


def _post(url: str, subject: str, text: str) -> None:
    body = json.dumps({"text": f"{subject}\n{text}", "subject": subject}).encode()
    if urlsplit(url).scheme not in ("http", "https"):
        raise ServiceError("is no web address", where="ASTRID_ALERT_WEBHOOK", remedy="write https://…")
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE):
            pass
    except (OSError, ValueError, HTTPException) as error:
        # The address itself is a secret: whoever has it may write there. What complains of its form repeats it.
        said = error if isinstance(error, OSError) else type(error).__name__
        raise ServiceError(
            f"did not take the alert: {said}",
            where="ASTRID_ALERT_WEBHOOK",
            remedy="check the address with the service that gave it",
        ) from error


def _mail(settings: Settings, subject: str, text: str) -> None:
    if settings.smtp is None:
        raise ConfigError(
            "there is no mail server", where="ASTRID_SMTP", remedy="write smtp://user:password@host:587"
        )
    server = urlsplit(settings.smtp.get_secret_value())
    message = EmailMessage()
    message["Subject"] = subject
    message["To"] = settings.alert_email
    user = unquote(server.username or "")
    message["From"] = user if "@" in user else "astrid@localhost"
    message.set_content(text)
    kind = smtplib.SMTP_SSL if server.scheme == "smtps" else smtplib.SMTP
    try:
        with kind(server.hostname or "", server.port or 0, timeout=PATIENCE) as client:
            client.ehlo()
            if server.scheme != "smtps" and client.has_extn("starttls"):
                client.starttls(context=ssl.create_default_context())
            if server.username:
                client.login(unquote(server.username), unquote(server.password or ""))
            client.send_message(message)
    except (OSError, smtplib.SMTPException) as error:
        raise ServiceError(
            f"the mail server did not take the alert: {error}",
            where=f"{server.scheme}://{server.hostname}",
            remedy="check ASTRID_SMTP and ASTRID_ALERT_EMAIL",
        ) from error
