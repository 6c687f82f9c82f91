"""The ledger on real NFS: a server and several clients, in a lab that runs beside the checkout."""
