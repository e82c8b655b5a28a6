"""The roles that ship with COGO. They live on the same door as third parties' (docs/adr/0002)."""
