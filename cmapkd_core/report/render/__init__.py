"""One report in its forms: HTML, Markdown, LaTeX, SVG, PDF and PNG."""
