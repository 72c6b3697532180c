"""The same requests on Millstream and on its peers, each in a process of its own, in one table."""
