"""What people are told when something is not as it should be."""


class FleetError(ValueError):
    """Something is wrong with a manifest, a ledger or a command; says what and what to do."""


class LedgerFull(FleetError):
    """The ledger's disk takes nothing more; no job can end until it does."""
