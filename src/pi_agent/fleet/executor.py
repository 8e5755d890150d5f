"""Django's migrations, each noted in the transaction that does it (requirement RS-14).

Django itself notes a migration that makes indexes or constraints after its transaction: a server that was killed between
the two would never start again, since the tables are already there.
"""

from __future__ import annotations

from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.migration import Migration
from django.db.migrations.state import ProjectState


class Executor(MigrationExecutor):
    """Applies migrations whole, or not at all."""

    def apply_migration(
        self, state: ProjectState, migration: Migration, fake: bool = False, fake_initial: bool = False
    ) -> ProjectState:
        with self.connection.schema_editor(atomic=True) as editor:
            state = migration.apply(state, editor)
            while editor.deferred_sql:
                editor.execute(editor.deferred_sql.pop(0), None)
            self.recorder.record_applied(migration.app_label, migration.name)
        return state

    def migrate_all(self) -> None:
        """Apply whatever is not in yet."""
        self.migrate(self.loader.graph.leaf_nodes())
