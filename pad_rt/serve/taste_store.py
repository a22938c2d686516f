"""Where a server keeps what people's choices told it: a table of differences of phi, by person and PersRMs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sql

from pad_rt.taste.taste import MAX_ANSWERS
from pad_runtime.errors import OptionError

_TABLES = sql.MetaData()
_ANSWERS = sql.Table(
    "pad_answers",
    _TABLES,
    sql.Column("id", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("person", sql.String(64), nullable=False),
    sql.Column("persrms", sql.String(64), nullable=False),  # digest
    sql.Column("difference", sql.JSON, nullable=False),
    sql.Index("pad_answers_of", "persrms", "person", "id"),
)


@dataclass(frozen=True)
class KeptAnswers:
    """What is kept of one person.

    Attributes:
        differences: as of `Taste.answers`, the oldest first.
        last: tells these answers from those before and after.
    """

    differences: tuple[tuple[float, ...], ...]
    last: int


class TasteStore:
    """A database of answers. Each answer is a row of its own, so that servers that share a database lose none.

    No text of a prompt or reply is in it. Of a person, the last 1,000 answers are kept for each set of PersRMs.

    Args:
        place: a file, which becomes an SQLite database, or SQLAlchemy's URL of any database.

    Raises:
        OptionError: it cannot be opened.
    """

    def __init__(self, place: str) -> None:
        url = place if "://" in place else f"sqlite:///{Path(place).absolute()}"
        try:
            self._engine = sql.create_engine(url)
            if self._engine.dialect.name == "sqlite":
                sql.event.listen(self._engine, "connect", _erase_what_is_deleted)
            _TABLES.create_all(self._engine)
        except (sql.exc.SQLAlchemyError, ImportError, ValueError) as error:
            raise OptionError(
                f"--learn: {_reason(error)}", expected="a file, or a URL such as postgresql://HOST/NAME"
            ) from None

    def add(self, person: str, persrms: str, difference: Sequence[float]) -> None:
        """Keep an answer, and no more than the last 1,000."""
        mine = self._of(person, persrms)
        with self._engine.begin() as connection:
            connection.execute(_ANSWERS.insert().values(person=person, persrms=persrms, difference=list(difference)))
            recent = sql.select(_ANSWERS.c.id).where(mine).order_by(_ANSWERS.c.id.desc())
            oldest = connection.execute(recent.offset(MAX_ANSWERS).limit(1)).scalar()
            if oldest is not None:
                connection.execute(_ANSWERS.delete().where(mine, _ANSWERS.c.id <= oldest))

    def read(self, person: str, persrms: str) -> KeptAnswers | None:
        """The answers of a person to whom these PersRMs replied; None: there is none."""
        chosen = sql.select(_ANSWERS.c.id, _ANSWERS.c.difference).where(self._of(person, persrms))
        with self._engine.connect() as connection:
            rows = connection.execute(chosen.order_by(_ANSWERS.c.id)).all()
        return KeptAnswers(tuple(tuple(row.difference) for row in rows), rows[-1].id) if rows else None

    def last(self, person: str, persrms: str) -> int | None:
        """`KeptAnswers.last`, without reading the answers."""
        with self._engine.connect() as connection:
            number: int | None = connection.execute(
                sql.select(sql.func.max(_ANSWERS.c.id)).where(self._of(person, persrms))
            ).scalar()
        return number

    def delete(self, person: str) -> int:
        """Delete all answers of a person, whatever PersRMs they are about; how many there were."""
        with self._engine.begin() as connection:
            return connection.execute(_ANSWERS.delete().where(_ANSWERS.c.person == person)).rowcount

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    @staticmethod
    def _of(person: str, persrms: str) -> sql.ColumnElement[bool]:
        return sql.and_(_ANSWERS.c.persrms == persrms, _ANSWERS.c.person == person)


def _erase_what_is_deleted(connection: object, _: object) -> None:
    """SQLite overwrites a deleted row with zeros, and waits for another process's write."""
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute("PRAGMA secure_delete = ON")
    cursor.execute("PRAGMA busy_timeout = 5000")
    cursor.close()


def _reason(error: Exception) -> str:
    """What a database driver says, on one line and without the statement, its values and SQLAlchemy's link."""
    known = getattr(error, "orig", None) or error
    return str(known).partition("\n")[0]
