"""The logbook: a line for everything that the services have to say."""

import logging

from meshkit import Context, Service

LEVELS = {"info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}

service = Service("logbook", version="1.0.0", description="Logs what the services have to say")


# The queue group: if there are several logbooks, each line is in one of them.
@service.subscribe("hotel.{origin}.{thing}.info", queue="logbook")
@service.subscribe("hotel.{origin}.{thing}.warn", queue="logbook")
@service.subscribe("hotel.{origin}.{thing}.error", queue="logbook")
async def write(text: str, origin: str, thing: str, ctx: Context) -> None:
    """Write a line."""
    level = ctx.subject.rpartition(".")[2]
    logging.getLogger(f"hotel.{origin}").log(LEVELS[level], "%s: %s", thing, text)
