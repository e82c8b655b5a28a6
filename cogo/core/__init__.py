"""The engine: one file per operational noun. Imports point downwards only (docs/adr/0002)."""
