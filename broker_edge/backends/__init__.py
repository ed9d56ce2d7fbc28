"""One module per port and technology; each translates foreign exceptions into `EdgeError` before they leave it."""
