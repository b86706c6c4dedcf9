"""Routes of the gateway. They parse, call one method, and serialise."""
