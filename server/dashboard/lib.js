// The libraries under the names that the views use. They come as scripts of their own (index.html).
export const { h, render, Fragment } = window.preact;
export const { useState, useEffect, useRef, useMemo, useCallback } = window.preactHooks;
export const html = window.htm.bind(h);
export const Plot = window.uPlot;
