"""The page at `/` on which a model can be tried: plain HTML, CSS and JavaScript, nothing from elsewhere."""

from server.page.router import page_router

__all__ = ["page_router"]
