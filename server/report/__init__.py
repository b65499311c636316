"""The report that people look at: one HTML file that fetches nothing and runs nothing."""

from server.report.page import write_report

__all__ = ["write_report"]
