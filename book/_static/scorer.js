/* Chapters before the reference, when both hold what is searched for. */
var Scorer = {
  score: ([docname, title, anchor, descr, score, filename]) =>
    docname.startsWith("notebooks/") ? score + 20 : docname.startsWith("book/api") ? score - 10 : score,
  objNameMatch: 4, objPartialMatch: 2, objPrio: { 0: 5, 1: 0, 2: -5 }, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
