"""A problem's file whose import fails."""

raise LookupError("the user's own fault, at import")
