"""The paper's claims, tested against the records of results folders. No torch."""
