"""Reports: JSON, JUnit and HTML."""
