"""The ledger on a whole terminal: looks as `status` does, and lets one go into things by keys."""
