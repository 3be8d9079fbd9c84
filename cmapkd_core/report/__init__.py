"""The report of a run and of a suite, made in one direction; a floor imports only those before it.

read          artifacts, and the numbers of their models over seeds
significance  every interval
tables        tables as data; a table of the paper has a file of its number
figures       figures as data; a figure of the paper has a file of its number
sections      what stands under each heading: words, figures, tables, or what is missing
render        HTML, Markdown, LaTeX, SVG, PDF, PNG, and the folder paper/
reports       all of it, for a run and for a suite
"""
