"""Facts as tables, pages and progress. No torch here."""
